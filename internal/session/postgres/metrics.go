package postgres

import "github.com/prometheus/client_golang/prometheus"

// metrics are the few numbers that tell how the service does.
type metrics struct {
	sessions   prometheus.Gauge
	refused    *prometheus.CounterVec // connections, by reason
	statements *prometheus.CounterVec // by outcome: allow, approve, deny, refused
	allowed    prometheus.Counter     // that of statements for what is allowed
	bytes      prometheus.Counter
	held       prometheus.Gauge
	estimates  *prometheus.CounterVec // by outcome: kept, planned, timeout, failed, busy
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chaperone_postgres_sessions", Help: "PostgreSQL sessions that are open."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_postgres_refused_connections_total", Help: "Connections that got no session, by reason."}, []string{"reason"}),
		statements: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_postgres_statements_total", Help: "Statements judged for execution, by outcome."}, []string{"outcome"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chaperone_postgres_result_bytes_total", Help: "Bytes of result rows sent to clients."}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chaperone_postgres_held_statements", Help: "Statements that wait for a reviewer now."}),
		estimates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_postgres_estimates_total", Help: "Estimates of statements that rules or reviewers needed, by outcome."}, []string{"outcome"}),
	}
	m.allowed = m.statements.WithLabelValues("allow")
	if registry == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.sessions, m.refused, m.statements, m.bytes, m.held, m.estimates} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// judged counts one statement.
func (m *metrics) judged(outcome string) {
	if outcome == "allow" {
		m.allowed.Inc()
		return
	}
	m.statements.WithLabelValues(outcome).Inc()
}
