"""What the tests share: hostile values, random trees and layouts, and the laws."""
