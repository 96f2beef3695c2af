// The page of the service: sends pictures, draws what comes back.
'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const find = (id) => document.getElementById(id);
  const AT_A_TIME = 4; // Requests; the service gathers them into batches.
  const MOST_TRIES = 20;

  const pictures = []; // In the order in which they were dropped.
  const state = { threshold: data.threshold, heat: true, boxes: true };
  let running = 0;

  // As the pictures of the report write scores.
  const number = (value) => {
    if (value === 0 || value >= 0.01) return value.toFixed(3);
    return String(Number(value.toPrecision(2)));
  };
  const sleep = (seconds) =>
    new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

  let announcing = 0;
  const announce = (text) => {
    clearTimeout(announcing);
    announcing = setTimeout(() => {
      find('announcement').textContent = text;
    }, 300);
  };

  // Asking ---------------------------------------------------------------

  /** The answer to one picture; waits where the service has no room. */
  const ask = async (file) => {
    for (let tries = 1; ; tries += 1) {
      const form = new FormData();
      form.append('file', file, file.name);
      const response = await fetch(`predict?map=${data.side}`, {
        method: 'POST',
        body: form,
      });
      if (response.status === 503 && tries < MOST_TRIES) {
        await sleep(Number(response.headers.get('Retry-After')) || 1);
        continue;
      }
      const text = await response.text();
      let answer = null;
      try {
        answer = JSON.parse(text);
      } catch {
        // Something between here and the service has answered.
      }
      if (response.ok && answer) return answer.results[0];
      throw new Error(
        answer?.error ?? `The service answers ${response.status}.`,
      );
    }
  };

  const fromBase64 = (text) =>
    Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  /** The levels of the map, 0 to 255, at the size at which it came. */
  const readLevels = async (text) => {
    const blob = new Blob([fromBase64(text)], { type: 'image/png' });
    const bitmap = await createImageBitmap(blob);
    const { width, height } = bitmap;
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const pixels = context.getImageData(0, 0, width, height).data;
    const levels = new Uint8Array(width * height);
    for (let i = 0; i < levels.length; i += 1) levels[i] = pixels[4 * i];
    return { width, height, levels };
  };

  /** What the browser can show of the file, at the map's size. */
  const readImage = async (file, width, height) => {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext('2d');
    try {
      const bitmap = await createImageBitmap(file);
      context.drawImage(bitmap, 0, 0, width, height);
      bitmap.close();
    } catch {
      // TIFF and the like: the map has to do without it.
      context.fillStyle = '#777';
      context.fillRect(0, 0, width, height);
    }
    return canvas;
  };

  const makeHeat = ({ width, height, levels }) => {
    const canvas = new OffscreenCanvas(width, height);
    const pixels = new ImageData(width, height);
    for (let i = 0; i < levels.length; i += 1) {
      for (let c = 0; c < 4; c += 1) {
        pixels.data[4 * i + c] = data.colors[4 * levels[i] + c];
      }
    }
    canvas.getContext('2d').putImageData(pixels, 0, 0);
    return canvas;
  };

  const score = async (picture) => {
    try {
      const result = await ask(picture.file);
      picture.map = await readLevels(result.map);
      delete result.map;
      const { width, height } = picture.map;
      picture.image = await readImage(picture.file, width, height);
      picture.heat = makeHeat(picture.map);
      picture.result = result;
      picture.error = null;
    } catch (error) {
      picture.error =
        error instanceof TypeError
          ? 'The service does not answer.'
          : error.message;
    }
    show(picture);
    count();
  };

  const next = async () => {
    if (running >= AT_A_TIME) return;
    const picture = pictures.find((one) => one.waits);
    if (!picture) return;
    picture.waits = false;
    running += 1;
    await score(picture);
    running -= 1;
    next();
  };

  // Regions --------------------------------------------------------------

  const isAnomalous = (picture) => picture.result.score > state.threshold;

  /** The least level that is anomalous, as the detector decides it. */
  const leastLevel = (picture) => {
    const peak = picture.map.levels.reduce((a, b) => Math.max(a, b), 0);
    const pixel = data.compares
      ? Math.min(data.pixelThreshold, state.threshold)
      : data.pixelThreshold;
    if (peak > 255 * pixel) return Math.floor(255 * pixel) + 1;
    if (!data.compares) return peak;
    return Math.min(Math.round(255 * picture.result.score), peak);
  };

  /** Boxes of pixels from a level on that touch, corners included. */
  const findBoxes = ({ width, height, levels }, least) => {
    const seen = new Uint8Array(levels.length);
    const boxes = [];
    for (let first = 0; first < levels.length; first += 1) {
      if (seen[first] || levels[first] < least) continue;
      seen[first] = 1;
      const stack = [first];
      let [left, top, right, bottom, area] = [width, height, 0, 0, 0];
      while (stack.length) {
        const place = stack.pop();
        const x = place % width;
        const y = (place - x) / width;
        area += 1;
        left = Math.min(left, x);
        right = Math.max(right, x + 1);
        top = Math.min(top, y);
        bottom = Math.max(bottom, y + 1);
        for (let v = Math.max(0, y - 1); v <= y + 1 && v < height; v += 1) {
          for (let u = Math.max(0, x - 1); u <= x + 1 && u < width; u += 1) {
            const other = v * width + u;
            if (seen[other] || levels[other] < least) continue;
            seen[other] = 1;
            stack.push(other);
          }
        }
      }
      boxes.push([left, top, right - left, bottom - top, area]);
    }
    return boxes;
  };

  /** Boxes in the map's pixels, and the share of them that is anomalous. */
  const regionsOf = (picture) => {
    if (!isAnomalous(picture)) return { boxes: [], area: 0 };
    const { result, map } = picture;
    // The service's own, to the pixel, where nothing has been moved.
    if (state.threshold === data.threshold) {
      const [x, y] = [map.width / result.width, map.height / result.height];
      const scale = ({ bbox: [left, top, width, height] }) =>
        [left * x, top * y, width * x, height * y];
      return { boxes: result.regions.map(scale), area: result.area };
    }
    const boxes = findBoxes(map, leastLevel(picture));
    const area = boxes.reduce((sum, box) => sum + box[4], 0);
    return { boxes, area: area / map.levels.length };
  };

  // Showing --------------------------------------------------------------

  const draw = (picture) => {
    const canvas = picture.card.querySelector('canvas');
    const { width, height } = picture.map;
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext('2d');
    context.drawImage(picture.image, 0, 0);
    if (state.heat) context.drawImage(picture.heat, 0, 0);
    if (!state.boxes) return;
    const line = Math.max(1, Math.round(Math.max(width, height) / 200));
    context.strokeStyle = data.box;
    context.lineWidth = line;
    for (const [left, top, boxWidth, boxHeight] of picture.regions.boxes) {
      const gap = 1.5 * line;
      context.strokeRect(
        left - gap,
        top - gap,
        boxWidth + 2 * gap,
        boxHeight + 2 * gap,
      );
    }
  };

  const show = (picture) => {
    const { card } = picture;
    card.querySelector('.state').textContent = picture.error ?? '';
    card.querySelector('.again').hidden = !picture.error;
    if (picture.error) {
      card.querySelector('.verdict').textContent = 'not scored';
      return;
    }
    if (!picture.result) return;
    const verdict = isAnomalous(picture) ? 'anomalous' : 'good';
    picture.regions = regionsOf(picture);
    card.className = `result ${verdict}`;
    card.querySelector('.score').textContent =
      `score ${number(picture.result.score)}`;
    card.querySelector('.verdict').textContent = verdict;
    card.querySelector('.save').hidden = false;
    draw(picture);
    const found = picture.regions.boxes.length;
    card.querySelector('canvas').setAttribute(
      'aria-label',
      `${picture.file.name} with its heat map: ${verdict}, ${found} regions`,
    );
  };

  const count = () => {
    const done = pictures.filter((picture) => picture.result);
    const bad = done.filter(isAnomalous).length;
    const broken = pictures.filter((picture) => picture.error).length;
    const left = pictures.length - done.length - broken;
    const parts = [`${pictures.length} pictures`, `${bad} anomalous`];
    if (broken) parts.push(`${broken} not scored`);
    if (left) parts.push(`${left} under way`);
    find('shown').textContent = parts.join(', ');
    announce(parts.join(', '));
  };

  const begin = (picture) => {
    picture.error = null;
    picture.waits = true;
    picture.card.querySelector('.state').textContent = 'Scoring…';
    picture.card.querySelector('.again').hidden = true;
    picture.card.querySelector('.verdict').textContent = '';
  };

  const add = (files) => {
    for (const file of files) {
      const card = find('card').content.firstElementChild.cloneNode(true);
      const picture = { file, card, result: null };
      card.querySelector('.name').textContent = file.name;
      card.querySelector('.save').addEventListener('click', () => {
        card.querySelector('canvas').toBlob((blob) => {
          save(blob, `${file.name.replace(/\.\w+$/, '')}-anomalies.png`);
        });
      });
      card.querySelector('.again').addEventListener('click', () => {
        begin(picture);
        next();
      });
      pictures.push(picture);
      find('gallery').append(card);
      begin(picture);
    }
    find('results').hidden = !pictures.length;
    count();
    for (let i = 0; i < AT_A_TIME; i += 1) next();
  };

  // Threshold ------------------------------------------------------------

  const slider = find('slider');
  const field = find('threshold');
  let drawing = 0;

  const setThreshold = (value, source) => {
    state.threshold = value;
    if (source !== slider) slider.value = value;
    if (source !== field) field.value = Number(value.toPrecision(4));
    cancelAnimationFrame(drawing);
    drawing = requestAnimationFrame(() => {
      pictures.forEach(show);
      count();
    });
  };
  slider.addEventListener('input', () => {
    setThreshold(Number(slider.value), slider);
  });
  field.addEventListener('input', () => {
    const value = field.valueAsNumber;
    if (value >= 0 && value <= 1) setThreshold(value, field);
  });
  find('use-detector').addEventListener('click', () => {
    setThreshold(data.threshold);
  });

  for (const name of ['heat', 'boxes']) {
    find(name).addEventListener('change', ({ target }) => {
      state[name] = target.checked;
      pictures.forEach(show);
    });
  }

  // Saving ---------------------------------------------------------------

  const save = (blob, name) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };

  const asCell = (value) => {
    const text = String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  find('save-table').addEventListener('click', () => {
    const rows = pictures
      .filter((picture) => picture.result)
      .map((picture) => [
        picture.file.name,
        picture.result.score,
        isAnomalous(picture),
        Number(picture.regions.area.toPrecision(6)),
      ]);
    const lines = [['file', 'score', 'is_anomalous', 'area'], ...rows];
    const text = lines.map((row) => row.map(asCell).join(',') + '\n').join('');
    save(new Blob([text], { type: 'text/csv' }), 'predictions.csv');
  });

  find('clear').addEventListener('click', () => {
    pictures.length = 0;
    find('gallery').replaceChildren();
    find('results').hidden = true;
    find('files').focus();
  });

  // Dropping -------------------------------------------------------------

  const drop = find('drop');
  find('files').addEventListener('change', ({ target }) => {
    add([...target.files]);
    target.value = '';
  });
  addEventListener('dragover', (event) => {
    event.preventDefault();
    drop.classList.add('over');
  });
  addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) drop.classList.remove('over');
  });
  addEventListener('drop', (event) => {
    event.preventDefault();
    drop.classList.remove('over');
    add([...event.dataTransfer.files]);
  });

  slider.value = data.threshold;
  field.value = Number(data.threshold.toPrecision(4));
})();
