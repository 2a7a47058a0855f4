// Drivers whose own test suites run straight at a server and through the gateway.
module suites

go 1.26.0

require (
	github.com/jackc/pgx/v5 v5.12.0
	github.com/lib/pq v1.12.3
	github.com/stretchr/testify v1.11.1
)
