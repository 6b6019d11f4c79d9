"""The user's own code: found, sent to the workers, identified, and kept from changing what runs after it."""
