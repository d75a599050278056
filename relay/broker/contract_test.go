package broker_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link/linktest"
	"github.com/storelay/storelay/relay/broker"
)

const clientEnd = "0123456789abcdef"

func rawConnect(t *testing.T, d *door, change func(*packets.Packet)) (net.Conn, *bufio.Reader, byte) {
	t.Helper()
	o := linktest.Origin()
	conn, err := tls.Dial("tcp", d.broker.Addr().String(), d.settings(d.ca, o))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(8 * time.Second))
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4, Connect: packets.ConnectParams{
		ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 20, ClientIdentifier: o.Agent + clientEnd}}
	if change != nil {
		change(&pk)
	}
	var out bytes.Buffer
	if err := pk.ConnectEncode(&out); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	head := make([]byte, 4)
	if _, err := io.ReadFull(in, head); err != nil {
		return conn, in, 0xff
	}
	return conn, in, head[3]
}

func TestReviewPublishOutsideTheContractEndsTheConnection(t *testing.T) {
	for name, h := range map[string]packets.FixedHeader{
		"QoS 2": {Type: packets.Publish, Qos: 2}, "retained": {Type: packets.Publish, Qos: 1, Retain: true}} {
		t.Run(name, func(t *testing.T) {
			d := open(t, linktest.NewSink())
			conn, in, code := rawConnect(t, d, nil)
			if code != 0 {
				t.Fatalf("CONNACK %d", code)
			}
			pk := packets.Packet{FixedHeader: h, TopicName: linktest.Origin().RecordTopic(), Payload: []byte("{"), PacketID: 7}
			var out bytes.Buffer
			if err := pk.PublishEncode(&out); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(out.Bytes()); err != nil {
				t.Fatal(err)
			}
			if b, err := in.ReadByte(); err == nil {
				t.Errorf("answered with packet type %d, want the end", b>>4)
			}
		})
	}
}

func TestReviewConnectOutsideTheContractIsRefused(t *testing.T) {
	d := open(t, linktest.NewSink())
	for name, change := range map[string]func(*packets.Packet){
		"longer agent's id": func(p *packets.Packet) { p.Connect.ClientIdentifier = "pc-10" + clientEnd },
		"bare agent id":     func(p *packets.Packet) { p.Connect.ClientIdentifier = "pc-1" },
		"kept session":      func(p *packets.Packet) { p.Connect.Clean = false },
		"no keep alive":     func(p *packets.Packet) { p.Connect.Keepalive = 0 },
		"MQTT 5":            func(p *packets.Packet) { p.ProtocolVersion = 5 },
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, code := rawConnect(t, d, change); code == 0 {
				t.Error("was let in")
			}
		})
	}
}

func TestReviewRunEndsWithAPeerThatSaysNothing(t *testing.T) {
	authority := authority(t)
	server, err := authority.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b, err := broker.New(broker.Options{Address: "127.0.0.1:0", TLS: authority.ServerTLS(server), Sink: linktest.NewSink(), Log: slog.New(slog.DiscardHandler),
		Allow: func(context.Context, protocol.Origin, *x509.Certificate) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	silent, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	// A second, full connection shows that the silent one was accepted before it.
	d := &door{t: t, ca: authority, broker: b}
	if _, _, code := rawConnect(t, d, nil); code != 0 {
		t.Fatalf("CONNACK %d", code)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("Run did not return 10 s after its context ended")
	}
}
