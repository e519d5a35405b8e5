"""What is measured beforehand on networks and photographs that a build cannot have, and kept in files."""
