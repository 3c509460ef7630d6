"""What a topology or experiment file may say."""
