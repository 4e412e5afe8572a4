"""What every program needs around its run: how it was launched, its folder, its logs, what must not be written."""
