"""What a policy makes of camera images: encoders, augmentation, and what they learn from recorded states."""
