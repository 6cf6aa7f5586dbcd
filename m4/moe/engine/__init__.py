"""Everything that moves rows between tokens and experts."""
