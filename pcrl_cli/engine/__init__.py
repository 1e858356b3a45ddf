"""Trains any Learner; names no method, task or data set."""
