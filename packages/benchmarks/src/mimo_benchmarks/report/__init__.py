"""Reports that compare finished runs: tables, figures, verdicts, and an HTML page."""
