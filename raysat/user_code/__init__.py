"""The user's own code: found, carried to the workers, identified, and kept from changing what runs after it."""
