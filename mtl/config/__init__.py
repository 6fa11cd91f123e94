"""From the command line to one checked, plain configuration."""
