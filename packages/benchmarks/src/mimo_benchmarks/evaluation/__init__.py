"""What a trained network answers, and how fast."""
