"""Restore a photograph: the Deep Image Prior, its operators, and what surrounds it."""
