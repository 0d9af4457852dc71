"""The plain networks that a superposed one is compared with."""
