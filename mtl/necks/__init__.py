"""Modules between encoder and heads that several heads may share."""
