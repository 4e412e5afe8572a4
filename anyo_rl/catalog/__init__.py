"""What can be recommended: the item table, its token paths and their prefix tree."""
