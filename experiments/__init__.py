"""Programs: flags, files and printing around the segjax library."""
