"""What people do with the trained model: talk to it, and let it review code. No stage imports from here."""
