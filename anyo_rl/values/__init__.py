"""What a state of a reasoning is worth: the gain to expect once some of its steps are written."""
