"""What happens on the simulated medium and to the links of its radios, read while a lab runs."""
