"""What is measured of networks: similarity, attention, receptive fields, skip connections, location, probes."""
