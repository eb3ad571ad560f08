"""Candidates, publication, promotion and rollback in a model repository."""
