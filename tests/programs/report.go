package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

// How much is kept of what a failure says, in bytes.
const bodyMax = 4096

// How long a line may wait before it is written.
const flushEvery = 20 * time.Millisecond

// A line of the output.
type line struct {
	// ready, synced, event, bookmark, cached, wrote, reconciled, status, error, log or summary
	Kind string `json:"kind"`
	// milliseconds since 1970
	Time     int64 `json:"time"`
	Instance int   `json:"instance"`
	// of events: ADDED, MODIFIED, DELETED; UNKNOWN for a deletion that an informer missed and found out later
	Type            string `json:"type,omitempty"`
	Namespace       string `json:"namespace,omitempty"`
	Name            string `json:"name,omitempty"`
	UID             string `json:"uid,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
	Generation      int64  `json:"generation,omitempty"`
	// of errors: where client-go said it
	Source  string `json:"source,omitempty"`
	Message string `json:"message,omitempty"`
	// of answers that are no success
	Code   int    `json:"code,omitempty"`
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	// of the summary: how many requests of each sort there were
	Requests map[string]int `json:"requests,omitempty"`
}

type reporter struct {
	mutex    sync.Mutex
	out      *bufio.Writer
	encoder  *json.Encoder
	requests map[string]int
	stop     chan struct{}
	failed   error
}

func newReporter(out io.Writer) *reporter {
	buffered := bufio.NewWriterSize(out, 64<<10)
	report := &reporter{out: buffered, encoder: json.NewEncoder(buffered), requests: map[string]int{}, stop: make(chan struct{})}
	go func() {
		for {
			select {
			case <-report.stop:
				return
			case <-time.After(flushEvery):
				report.mutex.Lock()
				report.keep(report.out.Flush())
				report.mutex.Unlock()
			}
		}
	}()
	return report
}

func (r *reporter) keep(err error) {
	if r.failed == nil {
		r.failed = err
	}
}

func (r *reporter) say(line line) {
	line.Time = time.Now().UnixMilli()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.keep(r.encoder.Encode(line))
}

// The summary, and the end.
func (r *reporter) close() error {
	close(r.stop)
	r.mutex.Lock()
	requests := r.requests
	r.mutex.Unlock()
	r.say(line{Kind: "summary", Requests: requests})
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.keep(r.out.Flush())
	return r.failed
}

func (r *reporter) object(kind, change string, instance int, object metav1.Object) {
	r.say(line{
		Kind: kind, Type: change, Instance: instance,
		Namespace: object.GetNamespace(), Name: object.GetName(), UID: string(object.GetUID()),
		ResourceVersion: object.GetResourceVersion(), Generation: object.GetGeneration(),
	})
}

func (r *reporter) error(source string, instance int, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	r.say(line{Kind: "error", Source: source, Instance: instance, Message: err.Error()})
}

// Whatever client-go and controller-runtime only log becomes a line; what comes because we end does not.
func (r *reporter) hear(ctx context.Context) {
	logger := logr.New(&sink{report: r, ctx: ctx})
	klog.SetLogger(logger)
	ctrl.SetLogger(logger)
	handler := func(_ context.Context, err error, message string, _ ...any) {
		if ctx.Err() == nil {
			r.say(line{Kind: "error", Source: "runtime", Message: fmt.Sprintf("%s: %v", message, err)})
		}
	}
	runtime.ErrorHandlers = []runtime.ErrorHandler{handler}
}

type sink struct {
	report *reporter
	ctx    context.Context
	values []any
}

func (s *sink) Init(logr.RuntimeInfo)  {}
func (s *sink) Enabled(level int) bool { return level == 0 }

func (s *sink) Info(_ int, message string, values ...any) {
	if s.ctx.Err() == nil {
		s.report.say(line{Kind: "log", Message: s.text(message, values)})
	}
}

func (s *sink) Error(err error, message string, values ...any) {
	if s.ctx.Err() == nil {
		s.report.say(line{Kind: "error", Source: "log", Message: fmt.Sprintf("%s: %v", s.text(message, values), err)})
	}
}

func (s *sink) WithName(string) logr.LogSink { return s }

func (s *sink) WithValues(values ...any) logr.LogSink {
	return &sink{s.report, s.ctx, append(append([]any{}, s.values...), values...)}
}

func (s *sink) text(message string, values []any) string {
	return strings.TrimSpace(fmt.Sprint(message, " ", fmt.Sprintln(append(append([]any{}, s.values...), values...)...)))
}

// A round tripper that counts requests and tells those that fail, also if client-go tries them again in silence.
func (r *reporter) transport(ctx context.Context) func(http.RoundTripper) http.RoundTripper {
	return func(inner http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			sort := sortOf(request)
			r.mutex.Lock()
			r.requests[sort]++
			r.mutex.Unlock()
			response, err := inner.RoundTrip(request)
			switch {
			case err != nil && ctx.Err() == nil && request.Context().Err() == nil:
				r.say(line{Kind: "error", Source: "transport", Method: sort, Path: request.URL.Path, Message: err.Error()})
			case err == nil && response.StatusCode >= 400:
				r.say(line{Kind: "status", Code: response.StatusCode, Method: sort, Path: request.URL.Path, Message: said(response)})
			}
			return response, err
		})
	}
}

// The body of a failure, which stays there to be read.
func said(response *http.Response) string {
	body, err := io.ReadAll(io.LimitReader(response.Body, bodyMax))
	rest := response.Body
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), rest), rest}
	if err != nil {
		return err.Error()
	}
	return string(body)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

func sortOf(request *http.Request) string {
	query := request.URL.Query()
	is := func(name string) bool { return query.Get(name) == "true" || query.Get(name) == "1" }
	switch {
	case request.Method != http.MethodGet:
		return request.Method
	case is("watch") && is("sendInitialEvents"):
		return "watch-list"
	case is("watch"):
		return "watch"
	case strings.HasSuffix(request.URL.Path, "/"+resource.Resource):
		return "list"
	default:
		return "GET"
	}
}
