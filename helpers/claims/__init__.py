"""What the papers claim, the verdicts of this book's measurements, and the pages made of them."""
