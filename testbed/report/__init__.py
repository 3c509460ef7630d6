"""A results folder to its verdict."""
