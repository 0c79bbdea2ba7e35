"""Command lines that show what a trained model finds."""
