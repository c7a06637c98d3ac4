// SPDX-License-Identifier: Apache-2.0
// Sets an Uptime Kuma up over its socket, as its page would: node uptime_kuma.js URL JSON
// JSON holds the notifications, and the monitor that uses all of them. Each notification is tested, too.
const { io } = require("socket.io-client");

const [url, wanted] = [process.argv[2], JSON.parse(process.argv[3])];
const socket = io(url, { transports: ["websocket"] });
const user = "zamu";
const password = "Only-for-a-test-1";

function ask(name, ...values) {
    return new Promise((resolve, reject) => {
        socket.emit(name, ...values, (answer) => (answer.ok ? resolve(answer) : reject(new Error(answer.msg))));
    });
}

async function main() {
    await new Promise((resolve) => socket.on("connect", resolve));
    await ask("setup", user, password);
    await ask("login", { username: user, password: password, token: "" });
    const used = {};
    for (const notification of wanted.notifications) {
        const { id } = await ask("addNotification", notification, null);
        used[id] = true;
        await ask("testNotification", notification);
    }
    await ask("add", { ...wanted.monitor, notificationIDList: used });
    console.log("set up");
    process.exit(0);
}

setTimeout(() => {
    console.error("It took too long.");
    process.exit(1);
}, 60000);
main().catch((error) => {
    console.error(error.message);
    process.exit(1);
});
