"""What teachers know, kept for students: a cache of answers to training histories, and where these come from."""
