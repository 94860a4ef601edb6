"""Training: a student's objective, its steps, its seeds."""
