"""What goes on around the steps of every trainer."""
