"""What differs between two layouts, and between the values of two trees."""
