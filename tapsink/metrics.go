package tapsink

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	streams   prometheus.Gauge
	responses *prometheus.CounterVec
	bytes     prometheus.Counter
	masked    prometheus.Counter
}

// register makes the metrics and, unless to is nil, registers them.
func (m *metrics) register(to prometheus.Registerer) error {
	m.streams = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "chaperone_tap_streams", Help: "Responses that are being processed."})
	m.responses = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "chaperone_tap_responses_total", Help: "Responses by how they ended: passed, masked, refused or cut."}, []string{"outcome"})
	m.bytes = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "chaperone_tap_body_bytes_total", Help: "Bytes of response bodies passed on."})
	m.masked = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "chaperone_tap_masked_total", Help: "Values replaced in responses."})
	if to == nil {
		return nil
	}
	var faults []error
	for _, c := range []prometheus.Collector{m.streams, m.responses, m.bytes, m.masked} {
		faults = append(faults, to.Register(c))
	}
	return errors.Join(faults...)
}
