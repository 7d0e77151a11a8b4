"""Parts of segmentation and detection."""
