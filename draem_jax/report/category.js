// The report of one category: threshold, gallery, table and panel.
'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const images = data.images;
  if (!images.length) return;

  const find = (id) => document.getElementById(id);
  const all = (selector) => document.querySelectorAll(selector);
  const MISSING = '–';
  // What an image is called by what came of its verdict.
  const OUTCOMES = {
    'missed': 'missed',
    'false-alarm': 'false alarm',
    'found': 'found',
    'passed': 'passed',
  };
  const MISTAKES = ['missed', 'false-alarm'];

  const state = {
    threshold: data.threshold,
    outcome: 'all',
    defect: '',
    sort: 'high',
    view: 'heat',
  };
  const hasTruth = images.some((image) => image.outline);
  let shown = []; // Images that pass the filters, in their order.
  let opened = null; // The image in the panel.

  // As the pictures in figures/ write scores.
  const number = (value) => {
    if (value === 0 || value >= 0.01) return value.toFixed(3);
    return String(Number(value.toPrecision(2)));
  };
  const percent = (part, whole) =>
    whole ? `${((100 * part) / whole).toFixed(1)} %` : MISSING;
  const isCalled = (image) => image.score > state.threshold;
  const outcomeOf = (image) => {
    if (image.anomalous) return isCalled(image) ? 'found' : 'missed';
    return isCalled(image) ? 'false-alarm' : 'passed';
  };
  const called = (image) => (isCalled(image) ? 'anomalous' : 'good');

  // Threshold -----------------------------------------------------------

  const slider = find('slider');
  const field = find('threshold');
  // The best threshold stands below all scores where every image is anomalous.
  const start = Math.min(0, data.bestThreshold ?? 0);
  slider.min = start;
  slider.max = data.end;

  const countOutcomes = () => {
    const counts = { 'found': 0, 'missed': 0, 'false-alarm': 0, 'passed': 0 };
    for (const image of images) {
      image.outcome = outcomeOf(image);
      counts[image.outcome] += 1;
    }
    return counts;
  };

  const describe = (counts) =>
    `${counts['found']} found, ${counts['missed']} missed, ` +
    `${counts['false-alarm']} false alarms, ${counts['passed']} passed`;

  const showCounts = (counts) => {
    const { found: tp, missed: fn, passed: tn, 'false-alarm': fp } = counts;
    find('tpr').textContent = percent(tp, tp + fn);
    find('fpr').textContent = percent(fp, fp + tn);
    find('precision').textContent = percent(tp, tp + fp);
    const whole = tp + fn ? 2 * tp + fp + fn : 0;
    find('f1').textContent = percent(2 * tp, whole);
    const amounts = { ...counts, all: images.length, mistakes: fn + fp };
    for (const element of all('[data-count]')) {
      element.textContent = amounts[element.dataset.count];
    }
    moveMark('roc', fp / (fp + tn), tp / (tp + fn));
    moveMark('precision-recall', tp / (tp + fn), tp / (tp + fp));
  };

  const moveMark = (chart, x, y) => {
    const mark = find(chart).querySelector('.mark');
    mark.hidden = !(Number.isFinite(x) && Number.isFinite(y));
    mark.style.left = `${100 * x}%`;
    mark.style.bottom = `${100 * y}%`;
  };

  let announcing = 0;
  const announce = (text) => {
    // Only where the slider rests: a screen reader would read every step.
    clearTimeout(announcing);
    announcing = setTimeout(() => {
      find('announcement').textContent = text;
    }, 400);
  };

  const setThreshold = (value, { quiet = false, keepField = false } = {}) => {
    state.threshold = Math.min(Math.max(value, start), data.end);
    const text = number(state.threshold);
    const counts = countOutcomes();
    const share = `${(100 * Math.max(state.threshold, 0)) / data.end}%`;
    find('histogram').style.setProperty('--threshold', share);
    slider.value = state.threshold;
    slider.setAttribute('aria-valuetext', text);
    if (!keepField) field.value = Number(state.threshold.toPrecision(4));
    showCounts(counts);
    if (!quiet) announce(`Threshold ${text}: ${describe(counts)}`);
    arrange();
  };

  slider.addEventListener('input', () => setThreshold(slider.valueAsNumber));
  // Browsers disagree on how far a key moves a slider without steps.
  const KEYS = {
    ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1,
    PageDown: -20, PageUp: 20, Home: -Infinity, End: Infinity,
  };
  slider.addEventListener('keydown', (event) => {
    const steps = KEYS[event.key];
    if (!steps || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    setThreshold(state.threshold + (steps * data.end) / 500);
  });
  field.addEventListener('input', () => {
    if (Number.isFinite(field.valueAsNumber)) {
      setThreshold(field.valueAsNumber, { keepField: true });
    }
  });
  field.addEventListener('change', () => setThreshold(state.threshold));
  find('use-detector').addEventListener('click', () =>
    setThreshold(data.threshold),
  );
  find('use-best')?.addEventListener('click', () =>
    setThreshold(data.bestThreshold),
  );
  const plot = document.querySelector('#histogram .plot');
  const pointAt = (event) => {
    const box = plot.getBoundingClientRect();
    setThreshold(((event.clientX - box.left) / box.width) * data.end);
  };
  plot.addEventListener('pointerdown', (event) => {
    if (event.pointerType === 'mouse') plot.setPointerCapture(event.pointerId);
    pointAt(event);
  });
  plot.addEventListener('pointermove', (event) => {
    if (plot.hasPointerCapture(event.pointerId)) pointAt(event);
  });

  // Pictures ------------------------------------------------------------

  const picture = (source, alt) => {
    const element = new Image();
    element.decoding = 'async';
    element.alt = alt;
    element.src = `data:image/webp;base64,${source}`;
    return element;
  };

  /** Pictures may differ in size: then each says its own. */
  const sizeOf = (image) => [
    image.width ?? data.width,
    image.height ?? data.height,
  ];

  const outline = (image) => {
    const svg = find('svg').cloneNode(false);
    svg.removeAttribute('id');
    svg.removeAttribute('hidden');
    svg.setAttribute('class', 'outline');
    const [width, height] = sizeOf(image);
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    svg.setAttribute('aria-hidden', 'true');
    const line = document.createElementNS(svg.namespaceURI, 'path');
    line.setAttribute('d', image.outline);
    svg.append(line);
    return svg;
  };

  /** Fills a frame with layers of an image; the first one has the text. */
  const fillFrame = (frame, image, layers, alt) => {
    const parts = [];
    for (const layer of layers) {
      if (!image[layer]) continue;
      if (layer === 'outline') {
        parts.push(outline(image));
      } else {
        const element = picture(image[layer], parts.length ? '' : alt);
        element.className = layer;
        parts.push(element);
      }
    }
    if (!image.input) {
      const note = document.createElement('span');
      note.className = 'absent';
      note.textContent = 'no picture kept';
      parts.splice(0, parts.length, note);
    }
    frame.replaceChildren(...parts);
  };

  // Gallery and table ---------------------------------------------------

  const gallery = find('gallery');
  const rows = document.querySelector('#table tbody');
  // A picture is decoded when its card comes near the window.
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) loadCard(target);
      }
    },
    { rootMargin: '600px' },
  );

  const loadCard = (card) => {
    watcher.unobserve(card);
    const frame = card.querySelector('.picture');
    const image = images[card.dataset.index];
    fillFrame(frame, image, ['input', 'heat', 'outline'], '');
  };

  const makeCard = (image) => {
    const card = find('card').content.firstElementChild.cloneNode(true);
    card.querySelector('.picture').style.aspectRatio =
      sizeOf(image).join(' / ');
    card.querySelector('.name').textContent = image.name;
    card.querySelector('.score').textContent = number(image.score);
    card.firstElementChild.addEventListener('click', () => openPanel(image));
    card.dataset.index = images.indexOf(image);
    watcher.observe(card);
    return card;
  };

  const makeRow = (image) => {
    const row = find('row').content.firstElementChild.cloneNode(true);
    const button = row.querySelector('button');
    button.textContent = image.name;
    button.addEventListener('click', () => openPanel(image));
    row.children[1].textContent = image.defect;
    row.children[2].textContent = number(image.score);
    return row;
  };

  const margin = (image) =>
    (image.score - state.threshold) * (image.anomalous ? 1 : -1);
  const collator = new Intl.Collator('en', { numeric: true });
  const byName = (a, b) => collator.compare(a.file, b.file);
  const ORDERS = {
    high: (a, b) => b.score - a.score || byName(a, b),
    low: (a, b) => a.score - b.score || byName(a, b),
    wrong: (a, b) => margin(a) - margin(b) || byName(a, b),
    file: byName,
  };

  const passes = (image) => {
    if (state.defect && image.defect !== state.defect) return false;
    if (state.outcome === 'all') return true;
    if (state.outcome === 'mistakes') return MISTAKES.includes(image.outcome);
    return image.outcome === state.outcome;
  };

  const mark = (image) => {
    const text = OUTCOMES[image.outcome];
    const badge = image.card.querySelector('.badge');
    badge.textContent = text;
    badge.className = `badge ${image.outcome}`;
    image.card.firstElementChild.setAttribute(
      'aria-label',
      `${image.name}, ${image.defect}, score ${number(image.score)}, ${text}`,
    );
    image.row.children[3].textContent = called(image);
    image.row.children[4].textContent = text;
    image.row.className = image.outcome;
  };

  /** Shows what passes the filters, in order, in gallery, table and panel. */
  const arrange = () => {
    images.forEach(mark);
    const before = shown;
    shown = images.filter(passes).sort(ORDERS[state.sort]);
    const isSame =
      shown.length === before.length &&
      shown.every((image, place) => image === before[place]);
    if (!isSame) {
      gallery.replaceChildren(...shown.map((image) => image.card));
      rows.replaceChildren(...shown.map((image) => image.row));
    }
    const text = shown.length
      ? `${shown.length} of ${images.length} images`
      : 'No image is like that.';
    if (find('shown').textContent !== text) find('shown').textContent = text;
  };

  const setView = (view) => {
    state.view = view;
    gallery.hidden = view === 'table';
    find('table').hidden = view !== 'table';
    find('truth').hidden = !hasTruth || view === 'table';
    gallery.classList.toggle('plain', view === 'input');
  };

  const setOutcome = (outcome) => {
    state.outcome = outcome;
    document.querySelector(`[name=outcome][value=${outcome}]`).checked = true;
    arrange();
  };

  find('toolbar').addEventListener('change', ({ target }) => {
    if (target.name === 'outcome') setOutcome(target.value);
    if (target.name === 'view') setView(target.value);
    if (target.id === 'defect' || target.id === 'sort') {
      state[target.id] = target.value;
      arrange();
    }
    if (target.id === 'outlines') {
      gallery.classList.toggle('bare', !target.checked);
    }
  });
  for (const button of all('[data-show]')) {
    button.addEventListener('click', () => {
      setOutcome(button.dataset.show);
      find('outcomes').querySelector(':checked').focus({ preventScroll: true });
      find('pictures').scrollIntoView();
    });
  }
  addEventListener('beforeprint', () => {
    shown.forEach((image) => loadCard(image.card));
  });

  // Panel ---------------------------------------------------------------

  const panel = find('panel');

  const showPanel = (image) => {
    opened = image;
    const sign = isCalled(image) ? '>' : '≤';
    find('panel-title').textContent = image.name;
    find('panel-text').textContent =
      `${image.defect} · score ${number(image.score)} ${sign} threshold ` +
      `${number(state.threshold)}: called ${called(image)} · ` +
      OUTCOMES[image.outcome];
    const place = shown.indexOf(image);
    find('place').textContent = `${place + 1} of ${shown.length}`;
    find('map-caption').textContent = image.outline
      ? 'Anomaly map, ground truth outlined'
      : 'Anomaly map';
    for (const frame of all('#panel .picture')) {
      const caption = frame.nextElementSibling.textContent;
      frame.style.aspectRatio = sizeOf(image).join(' / ');
      const layers = frame.dataset.layers.split(' ');
      fillFrame(frame, image, layers, `${caption} of ${image.name}`);
    }
  };

  const openPanel = (image) => {
    showPanel(image);
    panel.showModal();
  };

  const turn = (step) => {
    if (shown.length < 2) return;
    const place = shown.indexOf(opened) + step;
    showPanel(shown[(place + shown.length) % shown.length]);
  };

  const LEAPS = {
    ArrowLeft: () => turn(-1),
    ArrowRight: () => turn(1),
    Home: () => showPanel(shown[0]),
    End: () => showPanel(shown.at(-1)),
  };
  panel.addEventListener('keydown', (event) => {
    if (!LEAPS[event.key] || event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    event.preventDefault();
    LEAPS[event.key]();
  });
  find('previous').addEventListener('click', () => turn(-1));
  find('next').addEventListener('click', () => turn(1));
  find('close').addEventListener('click', () => panel.close());
  panel.addEventListener('click', (event) => {
    if (event.target === panel) panel.close(); // The backdrop.
  });
  panel.addEventListener('close', () => {
    const image = opened;
    opened = null;
    const place = state.view === 'table' ? image.row : image.card;
    place.querySelector('button').focus();
  });

  // Start ---------------------------------------------------------------

  for (const image of images) {
    // Every file lies in test/: it tells nothing.
    image.name = image.file.replace(/^test\//, '');
    image.card = makeCard(image);
    image.row = makeRow(image);
  }
  setView(state.view);
  setThreshold(data.threshold, { quiet: true });
})();
