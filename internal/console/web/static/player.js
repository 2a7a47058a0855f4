// Plays recorded terminals. The recording comes without anything but what draws;
// the player draws it as text in a grid, never as markup.
"use strict";
for (const terminal of document.querySelectorAll(".terminal")) {
  const part = (name) => terminal.querySelector("." + name);
  let player = null;
  const load = (at, play) => {
    if (player) {
      player.dispose();
    }
    player = AsciinemaPlayer.create(terminal.dataset.cast, part("screen"), {
      speed: Number(part("speed").value),
      idleTimeLimit: part("idle").checked ? 3 : 86400,
      startAt: at,
      preload: true,
      autoPlay: play,
      fit: "width",
      controls: true,
      theme: "asciinema",
    });
    terminal.player = player;
  };
  part("play").addEventListener("click", () => {
    load(0, true);
    part("play").textContent = "Play from the beginning";
  });
  part("speed").addEventListener("change", () => player && load(player.getCurrentTime(), true));
  part("idle").addEventListener("change", () => player && load(0, true));
}
