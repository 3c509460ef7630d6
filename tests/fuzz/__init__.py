"""Inputs that are broken on purpose, many of them: each module is a program that takes a number and a seed."""
