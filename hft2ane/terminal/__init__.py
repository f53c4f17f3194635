"""What people see in a terminal: progress bars and tables."""
