// The comparison: sorts by a column; on a narrow screen shows one metric.
'use strict';
(() => {
  const table = document.getElementById('comparison');
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];

  const valueOf = (row, column) => {
    const { value } = row.cells[column].dataset;
    return value === undefined ? -1 : Number(value); // Missing metrics last.
  };
  const nameOf = (row) => row.cells[0].textContent;
  const byName = (a, b) =>
    nameOf(a).localeCompare(nameOf(b), 'en', { numeric: true });

  const sortBy = (column) => {
    const isName = column === 0;
    const before = heads[column].getAttribute('aria-sort');
    const first = isName ? 'ascending' : 'descending';
    const other = isName ? 'descending' : 'ascending';
    const order = before === first ? other : first;
    for (const head of heads) head.setAttribute('aria-sort', 'none');
    heads[column].setAttribute('aria-sort', order);
    const sign = order === 'ascending' ? 1 : -1;
    const rows = [...body.rows].sort((a, b) =>
      isName
        ? sign * byName(a, b)
        : sign * (valueOf(a, column) - valueOf(b, column)) || byName(a, b),
    );
    body.replaceChildren(...rows);
  };

  heads.forEach((head, column) => {
    head.setAttribute('aria-sort', 'none');
    head.firstElementChild.addEventListener('click', () => sortBy(column));
  });

  const choose = (metric) => {
    for (const cell of table.querySelectorAll('[data-metric]')) {
      cell.classList.toggle('chosen', cell.dataset.metric === metric);
    }
  };
  for (const input of document.querySelectorAll('[name=metric]')) {
    input.addEventListener('change', () => choose(input.value));
    if (input.checked) choose(input.value);
  }
})();
