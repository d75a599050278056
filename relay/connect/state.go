package connect

import "time"

// state is what this relay saw of the connector.
func (l *line) state() State {
	now := l.opts.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.seen
	s.Name, s.Type, s.Host = l.config.Name, l.config.Type, l.config.host()
	s.Active = now.Before(l.held)
	for _, slot := range l.rate {
		if slot.second > now.Unix()-int64(len(l.rate)) {
			s.LastMinute += slot.n
		}
	}
	return s
}

// hold notes until when the lease is ours.
func (l *line) hold(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = until
}

// holds says whether the lease is still ours.
func (l *line) holds() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opts.Now().Before(l.held)
}

func (l *line) succeeded() {
	now := l.opts.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.Delivered++
	l.seen.LastSuccess = now
	l.seen.Attempts, l.seen.LastError, l.seen.LastErrorAt = 0, "", time.Time{}
	l.refusals = 0
	slot := &l.rate[now.Unix()%int64(len(l.rate))]
	if slot.second != now.Unix() {
		slot.second, slot.n = now.Unix(), 0
	}
	slot.n++
}

// failedAt notes a failed attempt and returns the number of refusals since the last success.
func (l *line) failedAt(attempts int, out outcome) int {
	now := l.opts.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.Attempts, l.seen.LastError, l.seen.LastErrorAt = attempts, out.reason, now
	if out.verdict == refused {
		l.refusals++
	}
	return l.refusals
}

// failedWith notes what stopped the connector on our side.
func (l *line) failedWith(reason string) {
	now := l.opts.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.LastError, l.seen.LastErrorAt = reason, now
}

func (l *line) setPaused(paused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.Paused = paused
}

// forgive lets refusals make dead letters again, after Resume.
func (l *line) forgive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusals = 0
}
