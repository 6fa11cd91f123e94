"""BraTS volumes and Kaggle brain MRI pictures."""
