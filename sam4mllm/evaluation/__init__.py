"""What answers are worth: figures, intervals, and settings compared."""
