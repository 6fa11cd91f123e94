"""Dermoscopic images of ISIC."""
