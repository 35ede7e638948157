"""A Label Studio of one's own with drawn scenes."""
