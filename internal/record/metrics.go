package record

import "github.com/prometheus/client_golang/prometheus"

// metrics are what an operator must see of the recording.
type metrics struct {
	events    prometheus.Counter
	bytes     prometheus.Counter
	refused   prometheus.Counter
	faults    prometheus.Counter
	strangers prometheus.Counter
	available prometheus.Gauge
	fsync     prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chaperone_record_events_total", Help: "Events written."}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chaperone_record_written_bytes", Help: "Bytes of events written."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chaperone_record_refused_total", Help: "Appends that failed because the disk did."}),
		faults: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chaperone_record_faults_total", Help: "Times that the disk stopped being good."}),
		strangers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chaperone_record_strangers_omitted_total", Help: "Refusals of callers without an identity that were counted, not recorded one by one."}),
		available: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chaperone_record_available", Help: "1 while events can be recorded."}),
		fsync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "chaperone_record_fsync_seconds", Help: "Time of each fsync; one serves many events.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 11)}),
	}
	m.available.Set(1)
	if reg == nil {
		return m, nil
	}
	for _, c := range m.all() {
		if err := reg.Register(c); err != nil {
			m.unregister(reg)
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.events, m.bytes, m.refused, m.faults, m.strangers, m.available, m.fsync}
}

// unregister lets another recorder of the process take the names.
func (m *metrics) unregister(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	for _, c := range m.all() {
		reg.Unregister(c)
	}
}
