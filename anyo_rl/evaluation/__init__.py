"""One evaluator for teachers, baselines and students, and the report."""
