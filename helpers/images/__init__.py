"""What networks are shown: scenes that the book draws itself, and pictures from files and datasets."""
