"""What every floor may use: errors, files, texts of users, sums over processes, work in several processes."""
