package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/pmem"
)

// reload reads settings, directories and certificates again. What is wrong with
// them is logged, and then nothing changes.
func (s *service) reload(ctx context.Context) {
	s.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	switch left, err := s.tryReload(ctx); {
	case err != nil:
		s.log.Error().Str("error", errorLine(err)).Msg("reload failed, everything stays as it was")
	case left != nil:
		s.log.Error().Str("error", errorLine(left)).Int("exports", len(s.exports)).Msg("reload incomplete, all but this is in force")
	default:
		s.log.Info().Int("exports", len(s.exports)).Msg("reloaded")
	}
	s.notify(daemon.SdNotifyReady)
}

// tryReload either changes nothing, and returns why, or all but what is in left.
func (s *service) tryReload(ctx context.Context) (left, err error) {
	next := s.serveOptions
	if s.config != "" {
		if next.settings, err = readConfig(s.config, s.given); err != nil {
			return nil, err
		}
	}
	if err := next.validate(); err != nil {
		return nil, err
	}
	specs, err := next.exportSpecs(ctx, s.log, s.args)
	if err != nil {
		return nil, err
	}
	s.warnOfRestart(&next.settings)
	to := s.access
	if next.TLS.value == s.TLS.value {
		config, err := next.loadTLS(s.log, s.access.tls)
		if err != nil {
			return nil, err
		}
		to = next.access(config)
	}
	return s.replaceExports(ctx, specs, to)
}

// fixed are the settings that hold from the start to the end of a server.
var fixed = []string{
	"listen", "unix-mode", "pid-file", "metrics-listen", "pprof", "tls", "max-connections", "max-connections-per-peer", "handshake-timeout",
	"idle-timeout", "write-timeout", "max-memory", "busy-poll", "user", "group", "sandbox", "log-level",
}

// warnOfRestart names the settings that have changed and that a reload cannot.
func (s *service) warnOfRestart(next *settings) {
	now := map[string]string{}
	for _, g := range s.settings.groups() {
		g.flags.VisitAll(func(f *pflag.Flag) { now[f.Name] = f.Value.String() })
	}
	for _, g := range next.groups() {
		g.flags.VisitAll(func(f *pflag.Flag) {
			if slices.Contains(fixed, f.Name) && f.Value.String() != now[f.Name] {
				s.log.Warn().Str("setting", f.Name).Msg("changed, and takes effect when the server is restarted")
			}
		})
	}
}

// reopening is an export whose image must be closed to be opened with other options.
type reopening struct {
	exportSpec
	was pmem.Options
}

// replaceExports serves specs, to clients of to, instead of what is served now. Images
// that stay are not touched. Those that are new are opened before anything ends, so
// that an error changes nothing; but for an image that stays with other options, which
// must be closed to be opened, and so goes last. What then fails is in left.
func (s *service) replaceExports(ctx context.Context, specs []exportSpec, to access) (left, err error) {
	held := map[fileID]*image{}
	for _, e := range s.exports {
		if e.image.file != nil {
			held[idOf(e.image.file)] = e.image
		}
	}
	was := s.exports
	var next, opened []served
	var later []reopening
	for _, spec := range specs {
		switch im := held[idOf(spec.file)]; {
		case im == nil:
			im, err := s.openNew(ctx, spec)
			if err != nil {
				return nil, errors.Join(err, closeAll(opened))
			}
			if im != nil {
				opened = append(opened, served{spec, im})
			}
		case im.opened == spec.options():
			next = append(next, served{spec, im})
		default:
			later = append(later, reopening{spec, im.opened})
		}
	}
	if err := s.setExports(ctx, append(next, opened...), to); err != nil {
		return nil, errors.Join(err, closeAll(opened))
	}
	for _, e := range opened {
		s.announce(e.image, e.name)
	}
	s.closeUnused(was)
	return s.reopen(ctx, later), nil
}

// setExports ends the clients of what is not in next. All that asks more of a client
// is in force before there is anything new, and all that asks less when what it was
// asked for has gone.
func (s *service) setExports(ctx context.Context, next []served, to access) error {
	endBy, release := context.WithTimeout(ctx, shutdownTimeout)
	defer release()
	was, now := newRules(s.access, s.exports), newRules(to, next)
	s.admission.put(was, now)
	s.tls.current.Store(to.tls)
	if err := s.server.SetExports(endBy, nbdExports(next)); err != nil {
		s.tls.current.Store(s.access.tls)
		s.admission.put(was)
		return err
	}
	s.admission.put(now)
	s.exports, s.access = next, to
	s.watchExports()
	return nil
}

// closeUnused closes the images of exports that are not served any more.
func (s *service) closeUnused(was []served) {
	for _, e := range was {
		if slices.ContainsFunc(s.exports, func(now served) bool { return now.image == e.image }) {
			continue
		}
		if err := e.image.close(); err != nil {
			s.log.Error().Err(err).Str("path", e.path).Msg("closing an image that is not served any more")
			continue
		}
		s.log.Info().Str("path", e.path).Str("export", e.name).Msg("image closed")
	}
}

// reopen opens images with other options than those with which they were served
// until now; where that fails, with the old ones.
func (s *service) reopen(ctx context.Context, later []reopening) error {
	if len(later) == 0 {
		return nil
	}
	var errs []error
	var opened []served
	for _, r := range later {
		r.create = 0
		im, err := s.openHinting(ctx, r.exportSpec)
		if err != nil {
			r.readOnly, r.durability = r.was.ReadOnly, r.was.Durability
			var again error
			if im, again = s.openHinting(ctx, r.exportSpec); again != nil {
				errs = append(errs, fmt.Errorf("export %q, %w, also with its old options: it is not served any more", r.name, err))
				continue
			}
			errs = append(errs, fmt.Errorf("export %q, %w: it goes on with its old options", r.name, err))
		}
		opened = append(opened, served{r.exportSpec, im})
	}
	if err := s.setExports(ctx, slices.Concat(s.exports, opened), s.access); err != nil {
		return errors.Join(append(errs, err, closeAll(opened))...)
	}
	for _, e := range opened {
		s.announce(e.image, e.name)
	}
	return errors.Join(errs...)
}

// openNew is open, but makes nothing in the place of what was served: that is lost,
// or was moved away for a moment, and its clients must not find a blank disk.
func (s *service) openNew(ctx context.Context, spec exportSpec) (*image, error) {
	path := filepath.Clean(spec.path)
	if slices.ContainsFunc(s.exports, func(e served) bool { return e.name == spec.name || filepath.Clean(e.path) == path }) {
		spec.create = 0
	}
	im, err := s.open(ctx, spec)
	return im, s.hinting(spec, err)
}

// openHinting is openAsked with a hint.
func (s *service) openHinting(ctx context.Context, spec exportSpec) (*image, error) {
	im, err := s.openAsked(ctx, spec)
	return im, s.hinting(spec, err)
}

// hinting adds a hint to err where the sandbox may be in the way.
func (s *service) hinting(spec exportSpec, err error) error {
	if err != nil && s.confined && !s.reaches(spec.path) {
		return fmt.Errorf("%w; the sandbox lets a running server open only what lies in directories used at its start: restart it for others", err)
	}
	return err
}

// reaches says whether path is in the sandbox, by its looks.
func (s *service) reaches(path string) bool {
	f := s.atStart
	return slices.ContainsFunc(slices.Concat(f.Read, f.Write, f.Create), func(dir string) bool {
		rel, err := filepath.Rel(dir, path)
		return err == nil && filepath.IsLocal(rel)
	})
}

func closeAll(all []served) error {
	var errs []error
	for _, e := range all {
		errs = append(errs, e.image.close())
	}
	return errors.Join(errs...)
}
