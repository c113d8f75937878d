"""What ``fedalign data check`` finds in a user's file: errors as the loader sees them, and what deserves a look."""
