package demo

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// A customer is one believable person: made from a seed, nobody real.
type customer struct {
	ID               int
	Name, Email      string
	SSN, Card, Phone string
}

// customers makes n people from a fixed seed.
func customers(n int) []customer {
	r := rand.New(rand.NewPCG(7, 11))
	first := []string{"Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Radia", "Tony", "Frances", "Dennis", "Margaret", "John"}
	last := []string{"Lovelace", "Hopper", "Turing", "Dijkstra", "Liskov", "Knuth", "Perlman", "Hoare", "Allen", "Ritchie", "Hamilton", "Backus"}
	people := make([]customer, n)
	for i := range people {
		f, l := first[r.IntN(len(first))], last[r.IntN(len(last))]
		people[i] = customer{
			ID: i + 1, Name: f + " " + l,
			Email: fmt.Sprintf("%s.%s%d@example.com", strings.ToLower(f), strings.ToLower(l), i+1),
			SSN:   fmt.Sprintf("%03d-%02d-%04d", 100+r.IntN(500), 10+r.IntN(89), 1000+r.IntN(8999)),
			Card:  card(r),
			Phone: fmt.Sprintf("+1-202-555-%04d", 100+r.IntN(99)),
		}
	}
	return people
}

// card makes a card number with a right check digit (Luhn).
func card(r *rand.Rand) string {
	digits := []int{4}
	for len(digits) < 15 {
		digits = append(digits, r.IntN(10))
	}
	sum := 0
	for i, d := range digits {
		if i%2 == 0 { // the check digit makes it 16 long: double every second from the right
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	digits = append(digits, (10-sum%10)%10)
	var b strings.Builder
	for _, d := range digits {
		fmt.Fprint(&b, d)
	}
	return b.String()
}

// appRole is the role that the gateway logs in with.
const appRole = "chaperone_app"

// schemaSQL creates the orders database's content and the injected role. The
// role has no privilege on the columns that policy masks: a mistake above the
// database is then a permission error, not a leak.
func schemaSQL(people []customer, password string) string {
	r := rand.New(rand.NewPCG(13, 17))
	var b strings.Builder
	b.WriteString(`create table customers (id integer primary key, name text not null, email text not null, ssn text not null, card text not null);
create table orders (id integer primary key, customer_id integer not null references customers, item text not null, status text not null, total numeric(10,2) not null, placed date not null);
insert into customers values
`)
	for i, p := range people {
		fmt.Fprintf(&b, "%s(%d, '%s', '%s', '%s', '%s')", comma(i), p.ID, p.Name, p.Email, p.SSN, p.Card)
	}
	b.WriteString(";\ninsert into orders values\n")
	items := []string{"keyboard", "monitor", "desk lamp", "notebook", "headphones", "chair"}
	states := []string{"paid", "shipped", "open", "returned"}
	for i := range 3 * len(people) {
		fmt.Fprintf(&b, "%s(%d, %d, '%s', '%s', %d.%02d, date '2026-01-01' + %d)", comma(i), i+1, 1+r.IntN(len(people)),
			items[r.IntN(len(items))], states[r.IntN(len(states))], 5+r.IntN(900), r.IntN(100), r.IntN(300))
	}
	fmt.Fprintf(&b, `;
create role %[1]s login password '%[2]s';
revoke create on schema public from public;
grant usage on schema public to %[1]s;
grant select (id, name, email) on customers to %[1]s;
grant select, update (status), delete on orders to %[1]s;
`, appRole, password)
	return b.String()
}

func comma(i int) string {
	if i == 0 {
		return "  "
	}
	return ",\n  "
}
